"""Everything on one machine: what `prebinder up` starts beside the controller and the launch endpoint."""
