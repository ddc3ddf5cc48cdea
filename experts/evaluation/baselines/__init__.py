"""Monolithic networks to compare with, one file a method, all behind one interface."""
