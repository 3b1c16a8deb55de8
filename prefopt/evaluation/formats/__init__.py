"""Files of the official programs, written and read so that those programs and ours agree."""
