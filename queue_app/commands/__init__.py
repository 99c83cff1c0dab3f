"""What a person types: one click command or family per module. Parses, calls one function, prints."""
