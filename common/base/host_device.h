/*
 * host_device.h - marks inline functions that the host and, where nvcc compiles them, a device run from one source.
 */
#ifndef CF_BASE_HOST_DEVICE_H
#define CF_BASE_HOST_DEVICE_H

#ifdef __CUDACC__
#define CF_HOST_DEVICE __host__ __device__
#else
#define CF_HOST_DEVICE
#endif

#endif
