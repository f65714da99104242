"""A page for the browser: `flowllm ui` (extra [ui]).

The page uses the public names of `flowllm` alone. It is Streamlit's: Gradio needs an older Pillow
than the tested one, and would change what is installed.
"""
