"""What everything rests on: types, errors, random streams, files and locks, progress."""
