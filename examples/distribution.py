"""Split work equally and by capacity, and see what does not fit."""

from exo.gpu.clustering import WorkloadDistributor

distributor = WorkloadDistributor()
items = list(range(15))

equal = distributor.distribute_uniform(["cuda:0", "rocm:0"], items, max_per_device=5)
for device_id, share in equal.items():
    print(f"equal       {device_id}: {len(share)} items")
print(f"equal       unassigned: {len(equal.unassigned)} items")

weighted = distributor.distribute_by_capacity({"cuda:0": 3.0, "rocm:0": 1.0, "cpu:0": 0.0}, items)
for device_id, share in weighted.items():
    print(f"by capacity {device_id}: {len(share)} items")
