"""Which values weights can take: quantizers, and sharing them on a model.

``kmeans``, ``quantizers``, ``initialisations`` and ``solvers`` are NumPy; ``share``
puts the result on an ``nn.Module``.
"""
