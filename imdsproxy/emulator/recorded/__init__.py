"""What a real IMDS answered: the file of it, cutting parts out of an answer, and taking out what is personal.

Everything here is a function of values. `vm` may import it, and so may the command that records; it never asks IMDS.
"""
