"""Nothing here is ReST: a student can skip this whole folder.

It holds what a program needs around the algorithm: files, processes, the command line, text,
reports. Nothing in it imports rest.py, losses.py or a program.
"""
