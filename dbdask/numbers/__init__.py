"""Numbers: what computes, without Dask."""
