"""Shared by all tests."""

import torch

# The models in tests are tiny: a second thread only waits, and on a busy machine it waits long.
torch.set_num_threads(1)
