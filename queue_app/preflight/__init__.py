"""Looks before anything starts: each check is a line with pass, warn or fail, and what to do. Loads no torch."""
