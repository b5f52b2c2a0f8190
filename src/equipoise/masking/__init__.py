"""Is the robustness real, or do masked gradients mislead the attacks?"""
