"""MoE-Retriever and the methods it is compared with, trained from sealed feature stores alone."""
