"""What is on disk: settings and names, safe files and locks, runs, the data set's cache."""
