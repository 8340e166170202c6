"""Code that visual question answering, captioning and grounding share."""
