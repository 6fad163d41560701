"""Compiled inner loops. Arrays in, arrays or a status out; checks are the caller's."""
