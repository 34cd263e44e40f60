"""The bundle: engines, their contract and their evidence in one directory or file, all of it hashed."""
