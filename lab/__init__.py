"""What the commands do: command line, experiment, status, evaluation, tracking, first look."""
