"""How YAML is read, and what a section of the settings is."""
