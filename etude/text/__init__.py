"""Tokenizers, chat formats, and the incremental reader of turns."""
