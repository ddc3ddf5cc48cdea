"""The forms an expert's module can have, by name: built-in kinds, and those of installed packages."""
