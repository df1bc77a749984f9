"""The algorithms of the paper: each public function and its method."""
