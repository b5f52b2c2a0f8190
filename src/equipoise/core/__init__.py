"""The base of all packages: types, errors, random streams, files and locks, progress and caching."""
