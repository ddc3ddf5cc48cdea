"""The methods that are measured, one a file, all behind one interface: networks to compare with, and our own."""
