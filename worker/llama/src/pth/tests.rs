//! Files of the real `torch.save`, and files that it never wrote.

mod golden;
