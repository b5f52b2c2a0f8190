"""The base of all rooms: types, errors, random streams, files and locks, progress and caching."""
