"""Programs that turn raw files into a Zarr store and a trained model."""
