"""How good the segmentation gets, method against method, from the same few labels."""
