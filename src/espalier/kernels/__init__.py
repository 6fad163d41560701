"""Compiled inner loops. Arrays in, arrays or a status out; checks and exceptions stay in callers."""
