"""Shared by all tests."""

import signal

import torch

# The models in tests are tiny: a second thread only waits, and on a busy machine it waits long.
torch.set_num_threads(1)

# What a shell starts in the background ignores Ctrl-C, and so would all that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
