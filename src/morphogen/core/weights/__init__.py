"""Weight files of any origin as tensors: nothing in them runs, and the network is found under any wrapper."""
