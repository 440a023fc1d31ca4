"""What tests of loading share."""

import multiprocessing

# the server of multiprocessing imports it once, not each of its processes
multiprocessing.get_context('forkserver').set_forkserver_preload(['timm_hnc.data.datasets'])
