"""The networks' blocks on a CUDA GPU, in Triton kernels; the training step as one CUDA graph.

    guard.py     when the kernels take the modules' place, and what they are tried on before
    blocks.py    blocks as functions of tensors, with their derivatives
    kernels.py   the kernels
    graph.py     a training step, recorded once and replayed

Nothing here imports triton before a CUDA tensor asks for it.
"""
