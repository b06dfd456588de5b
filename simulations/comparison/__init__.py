"""`fedshelf compare`: methods x data x seeds from one file, measured alike and tested honestly."""
