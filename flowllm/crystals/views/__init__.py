"""Crystals to look at: figures that the mouse turns, and pages of them.

A figure is plotly's. Plotly is in the report of an evaluation anyway, its JavaScript comes with its
package, so that pages work without a network, and Jupyter, VS Code and Colab know its figures.
"""
