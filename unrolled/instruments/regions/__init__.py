"""What people marked on photos against what a network attends to: regions, boundaries, objects, copies."""
