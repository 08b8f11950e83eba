"""What a person sees: lines and tables on a terminal, figures, one self-contained page."""
