"""What is on disk: settings and names, safe files and locks, runs, images."""
