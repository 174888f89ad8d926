"""A small bookshop of four services: something to put into the mesh (README.md).

Standard library only, one image for all services.
"""
