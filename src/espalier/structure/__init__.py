"""What changes a network's architecture: filters removed, batch norms folded, weights factored.

The result is an ordinary, smaller, dense network; what was changed is recorded on it as edits
(:mod:`espalier.structure.edit`), goes into the file, and is replayed on a freshly built model.
"""
