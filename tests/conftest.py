"""Being here puts tests/ on sys.path, so that test modules can import their helpers."""
