"""What a first start finds out and compiles, kept in a folder for the starts after it.

One folder a kind of start: model, options, code, libraries and machine, all by their exact versions (`machine.py`). In
it are the choices that were measured and what torch's compiler and Triton have compiled (`compiled.py`), written and
read so that nobody else's files are ever run (`private_folder.py`); `preparation.py` is the life of it all.
"""
