"""What is on disk: settings and the run's name, safe files and locks, the run, the data set's cache."""
