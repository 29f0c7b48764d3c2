"""Blocks and batches on a CUDA GPU, in Triton kernels; the training step as one CUDA graph.

    guard.py     when the kernels take the layers' place, and whether they are right on this card
    blocks.py    blocks, with their derivatives, and batches as functions of tensors
    kernels.py   the kernels
    graph.py     a training step, recorded once and replayed

Nothing here imports triton before a CUDA tensor asks for it.
"""
