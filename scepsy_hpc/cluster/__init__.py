"""What there is: nodes, link domains, GPUs, sites, and how work is started on them."""
