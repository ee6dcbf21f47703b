extern "C" __global__ void __launch_bounds__(128, 1) tilegen_forward_kernel(half* __restrict__ k_ptr, half* __restrict__ o_ptr, half* __restrict__ q_ptr, half* __restrict__ v_ptr, int B, int H, int T);
extern "C" __global__ void __launch_bounds__(128, 1) tilegen_forward_kernel(half* __restrict__ k_ptr, half* __restrict__ o_ptr, half* __restrict__ q_ptr, half* __restrict__ v_ptr, int B, int H, int T) {
  extern __shared__ __align__(64) uchar shared_ptr[];
  alignas(64) int o1_ptr[1];
  o1_ptr[0] = (((int)blockIdx.x) % H);
  alignas(64) int rest1_ptr[1];
  rest1_ptr[0] = (((int)blockIdx.x) / H);
  alignas(64) int o0_ptr[1];
  o0_ptr[0] = rest1_ptr[0];
  alignas(64) float A_ptr[8];
  alignas(64) float past_ptr[8];
  alignas(64) float S_before_ptr[8];
  alignas(64) float P_ptr[8];
  #pragma unroll
  for (int v = 0; v < 2; ++v) {
    #pragma unroll
    for (int v_1 = 0; v_1 < 2; ++v_1) {
      #pragma unroll
      for (int v_2 = 0; v_2 < 2; ++v_2) {
        int row = ((v_1 * 8) + ((((int)threadIdx.x) % 32) / 4));
        int column = (((((((int)threadIdx.x) / 32) * 16) + (v * 8)) + ((((int)threadIdx.x) % 4) * 2)) + v_2);
        S_before_ptr[(((v * 4) + (v_1 * 2)) + v_2)] = 0x0p+0f/*0.000000e+00*/;
        if (((int)threadIdx.x) < 32) {
          S_before_ptr[(((v * 4) + (v_1 * 2)) + v_2)] = 0x0p+0f/*0.000000e+00*/;
        }
      }
    }
  }
  alignas(64) half Q_ahead_ptr[8];
  int run = ((int)threadIdx.x);
  int i1 = (((int)threadIdx.x) % 2);
  int i0 = ((((int)threadIdx.x) % 32) / 2);
  uint4 condval;
  if ((((int)threadIdx.x) < 32) && (((((int)threadIdx.x) % 32) / 2) < T)) {
    condval = *(uint4*)(q_ptr + ((((((((int)threadIdx.x) / 2) + (o0_ptr[0] * T)) * H) * 16) + (o1_ptr[0] * 16)) + ((((int)threadIdx.x) % 2) * 8)));
  } else {
    condval = make_uint4(__pack_half2(__float2half_rn(0x0p+0f/*0.000000e+00*/), __float2half_rn(0x0p+0f/*0.000000e+00*/)), __pack_half2(__float2half_rn(0x0p+0f/*0.000000e+00*/), __float2half_rn(0x0p+0f/*0.000000e+00*/)), __pack_half2(__float2half_rn(0x0p+0f/*0.000000e+00*/), __float2half_rn(0x0p+0f/*0.000000e+00*/)), __pack_half2(__float2half_rn(0x0p+0f/*0.000000e+00*/), __float2half_rn(0x0p+0f/*0.000000e+00*/)));
  }
  *(uint4*)(Q_ahead_ptr + 0) = condval;
  alignas(64) half K_ahead_ptr[8];
  int run_1 = ((int)threadIdx.x);
  int i1_1 = (((int)threadIdx.x) % 2);
  int i0_1 = ((((int)threadIdx.x) % 32) / 2);
  uint4 condval_1;
  if ((((int)threadIdx.x) < 32) && (((((int)threadIdx.x) % 32) / 2) < T)) {
    condval_1 = *(uint4*)(k_ptr + ((((((((int)threadIdx.x) / 2) + (o0_ptr[0] * T)) * H) * 16) + (o1_ptr[0] * 16)) + ((((int)threadIdx.x) % 2) * 8)));
  } else {
    condval_1 = make_uint4(__pack_half2(__float2half_rn(0x0p+0f/*0.000000e+00*/), __float2half_rn(0x0p+0f/*0.000000e+00*/)), __pack_half2(__float2half_rn(0x0p+0f/*0.000000e+00*/), __float2half_rn(0x0p+0f/*0.000000e+00*/)), __pack_half2(__float2half_rn(0x0p+0f/*0.000000e+00*/), __float2half_rn(0x0p+0f/*0.000000e+00*/)), __pack_half2(__float2half_rn(0x0p+0f/*0.000000e+00*/), __float2half_rn(0x0p+0f/*0.000000e+00*/)));
  }
  *(uint4*)(K_ahead_ptr + 0) = condval_1;
  alignas(64) half V_ahead_ptr[8];
  int run_2 = ((int)threadIdx.x);
  int i1_2 = (((int)threadIdx.x) % 2);
  int i0_2 = ((((int)threadIdx.x) % 32) / 2);
  uint4 condval_2;
  if ((((int)threadIdx.x) < 32) && (((((int)threadIdx.x) % 32) / 2) < T)) {
    condval_2 = *(uint4*)(v_ptr + ((((((((int)threadIdx.x) / 2) + (o0_ptr[0] * T)) * H) * 16) + (o1_ptr[0] * 16)) + ((((int)threadIdx.x) % 2) * 8)));
  } else {
    condval_2 = make_uint4(__pack_half2(__float2half_rn(0x0p+0f/*0.000000e+00*/), __float2half_rn(0x0p+0f/*0.000000e+00*/)), __pack_half2(__float2half_rn(0x0p+0f/*0.000000e+00*/), __float2half_rn(0x0p+0f/*0.000000e+00*/)), __pack_half2(__float2half_rn(0x0p+0f/*0.000000e+00*/), __float2half_rn(0x0p+0f/*0.000000e+00*/)), __pack_half2(__float2half_rn(0x0p+0f/*0.000000e+00*/), __float2half_rn(0x0p+0f/*0.000000e+00*/)));
  }
  *(uint4*)(V_ahead_ptr + 0) = condval_2;
  for (int v_3 = 0; v_3 < ((T + 15) / 16); ++v_3) {
    int step = v_3;
    int turn = (v_3 % 2);
    #pragma unroll
    for (int v_4 = 0; v_4 < 2; ++v_4) {
      #pragma unroll
      for (int v_5 = 0; v_5 < 2; ++v_5) {
        if (((int)threadIdx.x) < 32) {
          half2 __1;
          float2 v_ = *(float2*)(S_before_ptr + ((v_4 * 4) + (v_5 * 2)));
          __1.x = (half)(v_.x);
          __1.y = (half)(v_.y);
          *(half2*)(((half*)shared_ptr) + ((((((v_3 % 2) * 1536) + (v_5 * 192)) + ((((int)threadIdx.x) / 4) * 24)) + (v_4 * 8)) + ((((int)threadIdx.x) % 4) * 2))) = __1;
        }
      }
    }
    int run_3 = ((int)threadIdx.x);
    int i1_3 = (((int)threadIdx.x) % 2);
    int i0_3 = ((((int)threadIdx.x) % 32) / 2);
    if (((int)threadIdx.x) < 32) {
      alignas(64) half _ptr[8];
      #pragma unroll
      for (int v_6 = 0; v_6 < 8; ++v_6) {
        _ptr[v_6] = Q_ahead_ptr[v_6];
      }
      *(uint4*)(((half*)shared_ptr) + (((((v_3 % 2) * 1536) + ((((int)threadIdx.x) / 2) * 24)) + ((((int)threadIdx.x) % 2) * 8)) + 384)) = *(uint4*)(_ptr + 0);
    }
    int run_4 = ((int)threadIdx.x);
    int i1_4 = (((int)threadIdx.x) % 2);
    int i0_4 = ((((int)threadIdx.x) % 32) / 2);
    if (((int)threadIdx.x) < 32) {
      alignas(64) half _ptr_1[8];
      #pragma unroll
      for (int v_7 = 0; v_7 < 8; ++v_7) {
        _ptr_1[v_7] = K_ahead_ptr[v_7];
      }
      *(uint4*)(((half*)shared_ptr) + (((((v_3 % 2) * 1536) + ((((int)threadIdx.x) / 2) * 24)) + ((((int)threadIdx.x) % 2) * 8)) + 768)) = *(uint4*)(_ptr_1 + 0);
    }
    int run_5 = ((int)threadIdx.x);
    int i1_5 = (((int)threadIdx.x) % 2);
    int i0_5 = ((((int)threadIdx.x) % 32) / 2);
    if (((int)threadIdx.x) < 32) {
      alignas(64) half _ptr_2[8];
      #pragma unroll
      for (int v_8 = 0; v_8 < 8; ++v_8) {
        _ptr_2[v_8] = V_ahead_ptr[v_8];
      }
      *(uint4*)(((half*)shared_ptr) + (((((v_3 % 2) * 1536) + ((((int)threadIdx.x) / 2) * 24)) + ((((int)threadIdx.x) % 2) * 8)) + 1152)) = *(uint4*)(_ptr_2 + 0);
    }
    int next = (v_3 + 1);
    int turn_1 = ((v_3 + 1) % 2);
    int run_6 = ((int)threadIdx.x);
    int i1_6 = (((int)threadIdx.x) % 2);
    int i0_6 = ((((int)threadIdx.x) % 32) / 2);
    uint4 condval_3;
    if ((((v_3 + 1) < ((T + 15) / 16)) && (((int)threadIdx.x) < 32)) && ((((v_3 * 16) + ((((int)threadIdx.x) % 32) / 2)) + 16) < T)) {
      condval_3 = *(uint4*)(q_ptr + ((((((((v_3 * 16) + (((int)threadIdx.x) / 2)) + (o0_ptr[0] * T)) + 16) * H) * 16) + (o1_ptr[0] * 16)) + ((((int)threadIdx.x) % 2) * 8)));
    } else {
      condval_3 = make_uint4(__pack_half2(__float2half_rn(0x0p+0f/*0.000000e+00*/), __float2half_rn(0x0p+0f/*0.000000e+00*/)), __pack_half2(__float2half_rn(0x0p+0f/*0.000000e+00*/), __float2half_rn(0x0p+0f/*0.000000e+00*/)), __pack_half2(__float2half_rn(0x0p+0f/*0.000000e+00*/), __float2half_rn(0x0p+0f/*0.000000e+00*/)), __pack_half2(__float2half_rn(0x0p+0f/*0.000000e+00*/), __float2half_rn(0x0p+0f/*0.000000e+00*/)));
    }
    *(uint4*)(Q_ahead_ptr + 0) = condval_3;
    int run_7 = ((int)threadIdx.x);
    int i1_7 = (((int)threadIdx.x) % 2);
    int i0_7 = ((((int)threadIdx.x) % 32) / 2);
    uint4 condval_4;
    if ((((v_3 + 1) < ((T + 15) / 16)) && (((int)threadIdx.x) < 32)) && ((((v_3 * 16) + ((((int)threadIdx.x) % 32) / 2)) + 16) < T)) {
      condval_4 = *(uint4*)(k_ptr + ((((((((v_3 * 16) + (((int)threadIdx.x) / 2)) + (o0_ptr[0] * T)) + 16) * H) * 16) + (o1_ptr[0] * 16)) + ((((int)threadIdx.x) % 2) * 8)));
    } else {
      condval_4 = make_uint4(__pack_half2(__float2half_rn(0x0p+0f/*0.000000e+00*/), __float2half_rn(0x0p+0f/*0.000000e+00*/)), __pack_half2(__float2half_rn(0x0p+0f/*0.000000e+00*/), __float2half_rn(0x0p+0f/*0.000000e+00*/)), __pack_half2(__float2half_rn(0x0p+0f/*0.000000e+00*/), __float2half_rn(0x0p+0f/*0.000000e+00*/)), __pack_half2(__float2half_rn(0x0p+0f/*0.000000e+00*/), __float2half_rn(0x0p+0f/*0.000000e+00*/)));
    }
    *(uint4*)(K_ahead_ptr + 0) = condval_4;
    int run_8 = ((int)threadIdx.x);
    int i1_8 = (((int)threadIdx.x) % 2);
    int i0_8 = ((((int)threadIdx.x) % 32) / 2);
    uint4 condval_5;
    if ((((v_3 + 1) < ((T + 15) / 16)) && (((int)threadIdx.x) < 32)) && ((((v_3 * 16) + ((((int)threadIdx.x) % 32) / 2)) + 16) < T)) {
      condval_5 = *(uint4*)(v_ptr + ((((((((v_3 * 16) + (((int)threadIdx.x) / 2)) + (o0_ptr[0] * T)) + 16) * H) * 16) + (o1_ptr[0] * 16)) + ((((int)threadIdx.x) % 2) * 8)));
    } else {
      condval_5 = make_uint4(__pack_half2(__float2half_rn(0x0p+0f/*0.000000e+00*/), __float2half_rn(0x0p+0f/*0.000000e+00*/)), __pack_half2(__float2half_rn(0x0p+0f/*0.000000e+00*/), __float2half_rn(0x0p+0f/*0.000000e+00*/)), __pack_half2(__float2half_rn(0x0p+0f/*0.000000e+00*/), __float2half_rn(0x0p+0f/*0.000000e+00*/)), __pack_half2(__float2half_rn(0x0p+0f/*0.000000e+00*/), __float2half_rn(0x0p+0f/*0.000000e+00*/)));
    }
    *(uint4*)(V_ahead_ptr + 0) = condval_5;
    __syncthreads();
    #pragma unroll
    for (int v_9 = 0; v_9 < 8; ++v_9) {
      A_ptr[v_9] = 0x0p+0f/*0.000000e+00*/;
    }
    alignas(64) half left_ptr[8];
    alignas(64) half right_ptr[8];
    #pragma unroll
    for (int v_10 = 0; v_10 < 1; ++v_10) {

  {
    unsigned int addr = __cvta_generic_to_shared((&(((half*)shared_ptr)[(((((v_3 % 2) * 1536) + ((((int)threadIdx.x) % 16) * 24)) + (((((int)threadIdx.x) % 32) / 16) * 8)) + 384)])) + 0);
    __asm__ __volatile__(
      "ldmatrix.sync.aligned.m8n8.x4.shared.b16"
      "{%0, %1, %2, %3}, [%4];\n"
      : "=r"(((unsigned *)(left_ptr + 0))[0]), "=r"(((unsigned *)(left_ptr + 0))[1]), "=r"(((unsigned *)(left_ptr + 0))[2]), "=r"(((unsigned *)(left_ptr + 0))[3])
      : "r"(addr)
    );
  }
      #pragma unroll
      for (int v_11 = 0; v_11 < 1; ++v_11) {
        if (((int)threadIdx.x) < 32) {

  {
    unsigned int addr = __cvta_generic_to_shared((&(((half*)shared_ptr)[((((((v_3 % 2) * 1536) + ((((int)threadIdx.x) / 16) * 192)) + ((((int)threadIdx.x) % 8) * 24)) + (((((int)threadIdx.x) % 16) / 8) * 8)) + 768)])) + 0);
    __asm__ __volatile__(
      "ldmatrix.sync.aligned.m8n8.x4.shared.b16"
      "{%0, %1, %2, %3}, [%4];\n"
      : "=r"(((unsigned *)(right_ptr + 0))[0]), "=r"(((unsigned *)(right_ptr + 0))[1]), "=r"(((unsigned *)(right_ptr + 0))[2]), "=r"(((unsigned *)(right_ptr + 0))[3])
      : "r"(addr)
    );
  }

  {
    __asm__ __volatile__(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};\n"
      :  "=f"(((float *)(A_ptr + 0))[0]), "=f"(((float *)(A_ptr + 0))[1]), "=f"(((float *)(A_ptr + 0))[2]), "=f"(((float *)(A_ptr + 0))[3])
      : "r"(((unsigned *)(left_ptr + 0))[0]), "r"(((unsigned *)(left_ptr + 0))[1]), "r"(((unsigned *)(left_ptr + 0))[2]), "r"(((unsigned *)(left_ptr + 0))[3]), "r"(((unsigned *)(right_ptr + 0))[0]), "r"(((unsigned *)(right_ptr + 0))[1]), "f"(((float *)(A_ptr + 0))[0]), "f"(((float *)(A_ptr + 0))[1]), "f"(((float *)(A_ptr + 0))[2]), "f"(((float *)(A_ptr + 0))[3]));
  }

  {
    __asm__ __volatile__(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};\n"
      :  "=f"(((float *)(A_ptr + 4))[0]), "=f"(((float *)(A_ptr + 4))[1]), "=f"(((float *)(A_ptr + 4))[2]), "=f"(((float *)(A_ptr + 4))[3])
      : "r"(((unsigned *)(left_ptr + 0))[0]), "r"(((unsigned *)(left_ptr + 0))[1]), "r"(((unsigned *)(left_ptr + 0))[2]), "r"(((unsigned *)(left_ptr + 0))[3]), "r"(((unsigned *)(right_ptr + 4))[0]), "r"(((unsigned *)(right_ptr + 4))[1]), "f"(((float *)(A_ptr + 4))[0]), "f"(((float *)(A_ptr + 4))[1]), "f"(((float *)(A_ptr + 4))[2]), "f"(((float *)(A_ptr + 4))[3]));
  }
        }
      }
    }
    #pragma unroll
    for (int v_12 = 0; v_12 < 8; ++v_12) {
      past_ptr[v_12] = 0x0p+0f/*0.000000e+00*/;
    }
    alignas(64) half right_ptr_1[8];
    #pragma unroll
    for (int v_13 = 0; v_13 < 1; ++v_13) {
      #pragma unroll
      for (int v_14 = 0; v_14 < 1; ++v_14) {
        if (((int)threadIdx.x) < 32) {

  {
    unsigned int addr = __cvta_generic_to_shared((&(((half*)shared_ptr)[((((v_3 % 2) * 1536) + ((((int)threadIdx.x) % 16) * 24)) + ((((int)threadIdx.x) / 16) * 8))])) + 0);
    __asm__ __volatile__(
      "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16"
      "{%0, %1, %2, %3}, [%4];\n"
      : "=r"(((unsigned *)(right_ptr_1 + 0))[0]), "=r"(((unsigned *)(right_ptr_1 + 0))[1]), "=r"(((unsigned *)(right_ptr_1 + 0))[2]), "=r"(((unsigned *)(right_ptr_1 + 0))[3])
      : "r"(addr)
    );
  }

  {
    __asm__ __volatile__(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};\n"
      :  "=f"(((float *)(past_ptr + 0))[0]), "=f"(((float *)(past_ptr + 0))[1]), "=f"(((float *)(past_ptr + 0))[2]), "=f"(((float *)(past_ptr + 0))[3])
      : "r"(((unsigned *)(left_ptr + 0))[0]), "r"(((unsigned *)(left_ptr + 0))[1]), "r"(((unsigned *)(left_ptr + 0))[2]), "r"(((unsigned *)(left_ptr + 0))[3]), "r"(((unsigned *)(right_ptr_1 + 0))[0]), "r"(((unsigned *)(right_ptr_1 + 0))[1]), "f"(((float *)(past_ptr + 0))[0]), "f"(((float *)(past_ptr + 0))[1]), "f"(((float *)(past_ptr + 0))[2]), "f"(((float *)(past_ptr + 0))[3]));
  }

  {
    __asm__ __volatile__(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};\n"
      :  "=f"(((float *)(past_ptr + 4))[0]), "=f"(((float *)(past_ptr + 4))[1]), "=f"(((float *)(past_ptr + 4))[2]), "=f"(((float *)(past_ptr + 4))[3])
      : "r"(((unsigned *)(left_ptr + 0))[0]), "r"(((unsigned *)(left_ptr + 0))[1]), "r"(((unsigned *)(left_ptr + 0))[2]), "r"(((unsigned *)(left_ptr + 0))[3]), "r"(((unsigned *)(right_ptr_1 + 4))[0]), "r"(((unsigned *)(right_ptr_1 + 4))[1]), "f"(((float *)(past_ptr + 4))[0]), "f"(((float *)(past_ptr + 4))[1]), "f"(((float *)(past_ptr + 4))[2]), "f"(((float *)(past_ptr + 4))[3]));
  }
        }
      }
    }
    alignas(64) half left_ptr_1[8];
    alignas(64) half right_ptr_2[8];
    #pragma unroll
    for (int v_15 = 0; v_15 < 1; ++v_15) {

  {
    unsigned int addr = __cvta_generic_to_shared((&(((half*)shared_ptr)[((((((v_3 % 2) * 1536) + (((((int)threadIdx.x) % 32) / 16) * 192)) + ((((int)threadIdx.x) % 8) * 24)) + (((((int)threadIdx.x) % 16) / 8) * 8)) + 768)])) + 0);
    __asm__ __volatile__(
      "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16"
      "{%0, %1, %2, %3}, [%4];\n"
      : "=r"(((unsigned *)(left_ptr_1 + 0))[0]), "=r"(((unsigned *)(left_ptr_1 + 0))[1]), "=r"(((unsigned *)(left_ptr_1 + 0))[2]), "=r"(((unsigned *)(left_ptr_1 + 0))[3])
      : "r"(addr)
    );
  }
      #pragma unroll
      for (int v_16 = 0; v_16 < 1; ++v_16) {
        if (((int)threadIdx.x) < 32) {

  {
    unsigned int addr = __cvta_generic_to_shared((&(((half*)shared_ptr)[(((((v_3 % 2) * 1536) + ((((int)threadIdx.x) % 16) * 24)) + ((((int)threadIdx.x) / 16) * 8)) + 1152)])) + 0);
    __asm__ __volatile__(
      "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16"
      "{%0, %1, %2, %3}, [%4];\n"
      : "=r"(((unsigned *)(right_ptr_2 + 0))[0]), "=r"(((unsigned *)(right_ptr_2 + 0))[1]), "=r"(((unsigned *)(right_ptr_2 + 0))[2]), "=r"(((unsigned *)(right_ptr_2 + 0))[3])
      : "r"(addr)
    );
  }

  {
    __asm__ __volatile__(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};\n"
      :  "=f"(((float *)(S_before_ptr + 0))[0]), "=f"(((float *)(S_before_ptr + 0))[1]), "=f"(((float *)(S_before_ptr + 0))[2]), "=f"(((float *)(S_before_ptr + 0))[3])
      : "r"(((unsigned *)(left_ptr_1 + 0))[0]), "r"(((unsigned *)(left_ptr_1 + 0))[1]), "r"(((unsigned *)(left_ptr_1 + 0))[2]), "r"(((unsigned *)(left_ptr_1 + 0))[3]), "r"(((unsigned *)(right_ptr_2 + 0))[0]), "r"(((unsigned *)(right_ptr_2 + 0))[1]), "f"(((float *)(S_before_ptr + 0))[0]), "f"(((float *)(S_before_ptr + 0))[1]), "f"(((float *)(S_before_ptr + 0))[2]), "f"(((float *)(S_before_ptr + 0))[3]));
  }

  {
    __asm__ __volatile__(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};\n"
      :  "=f"(((float *)(S_before_ptr + 4))[0]), "=f"(((float *)(S_before_ptr + 4))[1]), "=f"(((float *)(S_before_ptr + 4))[2]), "=f"(((float *)(S_before_ptr + 4))[3])
      : "r"(((unsigned *)(left_ptr_1 + 0))[0]), "r"(((unsigned *)(left_ptr_1 + 0))[1]), "r"(((unsigned *)(left_ptr_1 + 0))[2]), "r"(((unsigned *)(left_ptr_1 + 0))[3]), "r"(((unsigned *)(right_ptr_2 + 4))[0]), "r"(((unsigned *)(right_ptr_2 + 4))[1]), "f"(((float *)(S_before_ptr + 4))[0]), "f"(((float *)(S_before_ptr + 4))[1]), "f"(((float *)(S_before_ptr + 4))[2]), "f"(((float *)(S_before_ptr + 4))[3]));
  }
        }
      }
    }
    #pragma unroll
    for (int v_17 = 0; v_17 < 2; ++v_17) {
      #pragma unroll
      for (int v_18 = 0; v_18 < 2; ++v_18) {
        #pragma unroll
        for (int v_19 = 0; v_19 < 2; ++v_19) {
          int row_1 = ((v_18 * 8) + ((((int)threadIdx.x) % 32) / 4));
          int column_1 = (((((((int)threadIdx.x) / 32) * 16) + (v_17 * 8)) + ((((int)threadIdx.x) % 4) * 2)) + v_19);
          P_ptr[(((v_17 * 4) + (v_18 * 2)) + v_19)] = 0x0p+0f/*0.000000e+00*/;
          if (((int)threadIdx.x) < 32) {
            P_ptr[(((v_17 * 4) + (v_18 * 2)) + v_19)] = (((((v_17 * 8) + ((((int)threadIdx.x) % 4) * 2)) + v_19) <= ((v_18 * 8) + (((int)threadIdx.x) / 4))) ? A_ptr[(((v_17 * 4) + (v_18 * 2)) + v_19)] : 0x0p+0f/*0.000000e+00*/);
          }
        }
      }
    }
    __syncthreads();
    #pragma unroll
    for (int v_20 = 0; v_20 < 2; ++v_20) {
      #pragma unroll
      for (int v_21 = 0; v_21 < 2; ++v_21) {
        if (((int)threadIdx.x) < 32) {
          half2 __2;
          float2 v__1 = *(float2*)(P_ptr + ((v_20 * 4) + (v_21 * 2)));
          __2.x = (half)(v__1.x);
          __2.y = (half)(v__1.y);
          *(half2*)(((half*)shared_ptr) + (((((((v_3 % 2) * 1536) + (v_21 * 192)) + ((((int)threadIdx.x) / 4) * 24)) + (v_20 * 8)) + ((((int)threadIdx.x) % 4) * 2)) + 384)) = __2;
        }
      }
    }
    __syncthreads();
    alignas(64) half left_ptr_2[8];
    alignas(64) half right_ptr_3[8];
    #pragma unroll
    for (int v_22 = 0; v_22 < 1; ++v_22) {

  {
    unsigned int addr = __cvta_generic_to_shared((&(((half*)shared_ptr)[(((((v_3 % 2) * 1536) + ((((int)threadIdx.x) % 16) * 24)) + (((((int)threadIdx.x) % 32) / 16) * 8)) + 384)])) + 0);
    __asm__ __volatile__(
      "ldmatrix.sync.aligned.m8n8.x4.shared.b16"
      "{%0, %1, %2, %3}, [%4];\n"
      : "=r"(((unsigned *)(left_ptr_2 + 0))[0]), "=r"(((unsigned *)(left_ptr_2 + 0))[1]), "=r"(((unsigned *)(left_ptr_2 + 0))[2]), "=r"(((unsigned *)(left_ptr_2 + 0))[3])
      : "r"(addr)
    );
  }
      #pragma unroll
      for (int v_23 = 0; v_23 < 1; ++v_23) {
        if (((int)threadIdx.x) < 32) {

  {
    unsigned int addr = __cvta_generic_to_shared((&(((half*)shared_ptr)[(((((v_3 % 2) * 1536) + ((((int)threadIdx.x) % 16) * 24)) + ((((int)threadIdx.x) / 16) * 8)) + 1152)])) + 0);
    __asm__ __volatile__(
      "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16"
      "{%0, %1, %2, %3}, [%4];\n"
      : "=r"(((unsigned *)(right_ptr_3 + 0))[0]), "=r"(((unsigned *)(right_ptr_3 + 0))[1]), "=r"(((unsigned *)(right_ptr_3 + 0))[2]), "=r"(((unsigned *)(right_ptr_3 + 0))[3])
      : "r"(addr)
    );
  }

  {
    __asm__ __volatile__(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};\n"
      :  "=f"(((float *)(past_ptr + 0))[0]), "=f"(((float *)(past_ptr + 0))[1]), "=f"(((float *)(past_ptr + 0))[2]), "=f"(((float *)(past_ptr + 0))[3])
      : "r"(((unsigned *)(left_ptr_2 + 0))[0]), "r"(((unsigned *)(left_ptr_2 + 0))[1]), "r"(((unsigned *)(left_ptr_2 + 0))[2]), "r"(((unsigned *)(left_ptr_2 + 0))[3]), "r"(((unsigned *)(right_ptr_3 + 0))[0]), "r"(((unsigned *)(right_ptr_3 + 0))[1]), "f"(((float *)(past_ptr + 0))[0]), "f"(((float *)(past_ptr + 0))[1]), "f"(((float *)(past_ptr + 0))[2]), "f"(((float *)(past_ptr + 0))[3]));
  }

  {
    __asm__ __volatile__(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};\n"
      :  "=f"(((float *)(past_ptr + 4))[0]), "=f"(((float *)(past_ptr + 4))[1]), "=f"(((float *)(past_ptr + 4))[2]), "=f"(((float *)(past_ptr + 4))[3])
      : "r"(((unsigned *)(left_ptr_2 + 0))[0]), "r"(((unsigned *)(left_ptr_2 + 0))[1]), "r"(((unsigned *)(left_ptr_2 + 0))[2]), "r"(((unsigned *)(left_ptr_2 + 0))[3]), "r"(((unsigned *)(right_ptr_3 + 4))[0]), "r"(((unsigned *)(right_ptr_3 + 4))[1]), "f"(((float *)(past_ptr + 4))[0]), "f"(((float *)(past_ptr + 4))[1]), "f"(((float *)(past_ptr + 4))[2]), "f"(((float *)(past_ptr + 4))[3]));
  }
        }
      }
    }
    #pragma unroll
    for (int v_24 = 0; v_24 < 2; ++v_24) {
      int row_2 = ((v_24 * 8) + ((((int)threadIdx.x) % 32) / 4));
      if ((((v_3 * 16) + (v_24 * 8)) + ((((int)threadIdx.x) % 32) / 4)) < T) {
        #pragma unroll
        for (int v_25 = 0; v_25 < 2; ++v_25) {
          alignas(64) half _ptr_3[2];
          if (((int)threadIdx.x) < 32) {
            #pragma unroll
            for (int v_26 = 0; v_26 < 2; ++v_26) {
              int column_2 = (((v_25 * 8) + ((((int)threadIdx.x) % 4) * 2)) + v_26);
              alignas(64) float O_ptr[1];
              O_ptr[0] = past_ptr[(((v_25 * 4) + (v_24 * 2)) + v_26)];
              _ptr_3[v_26] = ((half)(O_ptr[0] * 0x1p-2f/*2.500000e-01*/));
            }
            *(half2*)(o_ptr + (((((((((v_3 * 16) + (v_24 * 8)) + (((int)threadIdx.x) / 4)) + (o0_ptr[0] * T)) * H) * 16) + (o1_ptr[0] * 16)) + (v_25 * 8)) + ((((int)threadIdx.x) % 4) * 2))) = *(half2*)(_ptr_3 + 0);
          }
        }
      }
    }
  }
}



#include <tvm/ffi/c_api.h>
#include <tvm/ffi/extra/c_env_api.h>
#include <tvm/ffi/extra/cuda/device_guard.h>
#include <tvm/ffi/function.h>
#include <cuda.h>
#include <cuda_runtime.h>
#include <math.h>
