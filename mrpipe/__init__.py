"""From raw clinical and multimodal exports to sealed Parquet feature stores with modality-availability bitmasks."""
