extern "C" __global__ void __launch_bounds__(256) tilegen_forward_kernel(half* __restrict__ k_ptr, half* __restrict__ q_ptr, half* __restrict__ v_ptr, half* __restrict__ y_ptr, int B, int T);
extern "C" __global__ void __launch_bounds__(256) tilegen_forward_kernel(half* __restrict__ k_ptr, half* __restrict__ q_ptr, half* __restrict__ v_ptr, half* __restrict__ y_ptr, int B, int T) {
  int tx = (((int)threadIdx.x) % 8);
  int group = (((int)threadIdx.x) / 8);
  int p0 = (((int)blockIdx.x) / 4);
  int first = (((((int)blockIdx.x) % 4) * 16) + ((((int)threadIdx.x) % 8) * 2));
  alignas(64) half read0_ptr[16];
  alignas(64) half next0_ptr[16];
  alignas(64) half read1_ptr[16];
  alignas(64) half next1_ptr[16];
  alignas(64) half read2_ptr[16];
  alignas(64) half next2_ptr[16];
  alignas(64) float begin0_ptr[2];
  alignas(64) float begin1_ptr[2];
  alignas(64) float begin2_ptr[2];
  alignas(64) float begin3_ptr[2];
  alignas(64) float begin4_ptr[2];
  alignas(64) float begin5_ptr[2];
  alignas(64) float begin6_ptr[2];
  alignas(64) float run0_ptr[2];
  alignas(64) float run1_ptr[2];
  alignas(64) float run2_ptr[2];
  alignas(64) float run3_ptr[2];
  alignas(64) float run4_ptr[2];
  alignas(64) float run5_ptr[2];
  alignas(64) float run6_ptr[2];
  alignas(64) half out0_ptr[2];
  extern __shared__ __align__(64) uchar shared_ptr[];
  alignas(64) float carry0_ptr[1];
  alignas(64) float carry0_ptr_1[1];
  #pragma unroll
  for (int v = 0; v < 1; ++v) {
    carry0_ptr[0] = CUDART_INF_F;
  }
  #pragma unroll
  for (int v_1 = 0; v_1 < 1; ++v_1) {
    carry0_ptr_1[0] = 0x0p+0f/*0.000000e+00*/;
  }
  if ((((((int)threadIdx.x) / 8) * 8) + 8) <= T) {
    half* v_2 = (half*)(&(k_ptr[(((((((int64_t)((int)threadIdx.x)) / (int64_t)8) * (int64_t)512) + (((((int64_t)((int)blockIdx.x)) / (int64_t)4) * ((int64_t)T)) * (int64_t)64)) + ((((int64_t)((int)blockIdx.x)) % (int64_t)4) * (int64_t)16)) + ((((int64_t)((int)threadIdx.x)) % (int64_t)8) * (int64_t)2))]));
    #pragma unroll
    for (int v_3 = 0; v_3 < 8; ++v_3) {
      *(half2*)(next0_ptr + (v_3 * 2)) = *(half2*)(v_2 + (v_3 * 64));
    }
    half* v_4 = (half*)(&(v_ptr[(((((((int64_t)((int)threadIdx.x)) / (int64_t)8) * (int64_t)512) + (((((int64_t)((int)blockIdx.x)) / (int64_t)4) * ((int64_t)T)) * (int64_t)64)) + ((((int64_t)((int)blockIdx.x)) % (int64_t)4) * (int64_t)16)) + ((((int64_t)((int)threadIdx.x)) % (int64_t)8) * (int64_t)2))]));
    #pragma unroll
    for (int v_5 = 0; v_5 < 8; ++v_5) {
      *(half2*)(next1_ptr + (v_5 * 2)) = *(half2*)(v_4 + (v_5 * 64));
    }
    half* v_6 = (half*)(&(q_ptr[(((((((int64_t)((int)threadIdx.x)) / (int64_t)8) * (int64_t)512) + (((((int64_t)((int)blockIdx.x)) / (int64_t)4) * ((int64_t)T)) * (int64_t)64)) + ((((int64_t)((int)blockIdx.x)) % (int64_t)4) * (int64_t)16)) + ((((int64_t)((int)threadIdx.x)) % (int64_t)8) * (int64_t)2))]));
    #pragma unroll
    for (int v_7 = 0; v_7 < 8; ++v_7) {
      *(half2*)(next2_ptr + (v_7 * 2)) = *(half2*)(v_6 + (v_7 * 64));
    }
  }
  if ((T - ((((int)threadIdx.x) / 8) * 8)) < 8) {
    #pragma unroll
    for (int v_8 = 0; v_8 < 8; ++v_8) {
      int v_9 = min((((((int)threadIdx.x) / 8) * 8) + v_8), (T - 1));
      *(half2*)(next0_ptr + (v_8 * 2)) = *(half2*)(k_ptr + ((((((((int64_t)((int)blockIdx.x)) / (int64_t)4) * ((int64_t)T)) * (int64_t)64) + (((int64_t)min((((((int)threadIdx.x) / 8) * 8) + v_8), (T - 1))) * (int64_t)64)) + ((((int64_t)((int)blockIdx.x)) % (int64_t)4) * (int64_t)16)) + ((((int64_t)((int)threadIdx.x)) % (int64_t)8) * (int64_t)2)));
    }
    #pragma unroll
    for (int v_10 = 0; v_10 < 8; ++v_10) {
      int v_11 = min((((((int)threadIdx.x) / 8) * 8) + v_10), (T - 1));
      *(half2*)(next1_ptr + (v_10 * 2)) = *(half2*)(v_ptr + ((((((((int64_t)((int)blockIdx.x)) / (int64_t)4) * ((int64_t)T)) * (int64_t)64) + (((int64_t)min((((((int)threadIdx.x) / 8) * 8) + v_10), (T - 1))) * (int64_t)64)) + ((((int64_t)((int)blockIdx.x)) % (int64_t)4) * (int64_t)16)) + ((((int64_t)((int)threadIdx.x)) % (int64_t)8) * (int64_t)2)));
    }
    #pragma unroll
    for (int v_12 = 0; v_12 < 8; ++v_12) {
      int v_13 = min((((((int)threadIdx.x) / 8) * 8) + v_12), (T - 1));
      *(half2*)(next2_ptr + (v_12 * 2)) = *(half2*)(q_ptr + ((((((((int64_t)((int)blockIdx.x)) / (int64_t)4) * ((int64_t)T)) * (int64_t)64) + (((int64_t)min((((((int)threadIdx.x) / 8) * 8) + v_12), (T - 1))) * (int64_t)64)) + ((((int64_t)((int)blockIdx.x)) % (int64_t)4) * (int64_t)16)) + ((((int64_t)((int)threadIdx.x)) % (int64_t)8) * (int64_t)2)));
    }
  }
  for (int v_14 = 0; v_14 < ((T + 255) / 256); ++v_14) {
    int start = ((v_14 * 256) + ((((int)threadIdx.x) / 8) * 8));
    #pragma unroll
    for (int v_15 = 0; v_15 < 8; ++v_15) {
      #pragma unroll
      for (int v_16 = 0; v_16 < 2; ++v_16) {
        read0_ptr[((v_15 * 2) + v_16)] = next0_ptr[((v_15 * 2) + v_16)];
      }
    }
    #pragma unroll
    for (int v_17 = 0; v_17 < 8; ++v_17) {
      #pragma unroll
      for (int v_18 = 0; v_18 < 2; ++v_18) {
        read1_ptr[((v_17 * 2) + v_18)] = next1_ptr[((v_17 * 2) + v_18)];
      }
    }
    #pragma unroll
    for (int v_19 = 0; v_19 < 8; ++v_19) {
      #pragma unroll
      for (int v_20 = 0; v_20 < 2; ++v_20) {
        read2_ptr[((v_19 * 2) + v_20)] = next2_ptr[((v_19 * 2) + v_20)];
      }
    }
    if ((((v_14 * 256) + ((((int)threadIdx.x) / 8) * 8)) + 264) <= T) {
      half* v_21 = (half*)(&(k_ptr[((((((((int64_t)v_14) * (int64_t)16384) + ((((int64_t)((int)threadIdx.x)) / (int64_t)8) * (int64_t)512)) + (((((int64_t)((int)blockIdx.x)) / (int64_t)4) * ((int64_t)T)) * (int64_t)64)) + ((((int64_t)((int)blockIdx.x)) % (int64_t)4) * (int64_t)16)) + ((((int64_t)((int)threadIdx.x)) % (int64_t)8) * (int64_t)2)) + (int64_t)16384)]));
      #pragma unroll
      for (int v_22 = 0; v_22 < 8; ++v_22) {
        *(half2*)(next0_ptr + (v_22 * 2)) = *(half2*)(v_21 + (v_22 * 64));
      }
      half* v_23 = (half*)(&(v_ptr[((((((((int64_t)v_14) * (int64_t)16384) + ((((int64_t)((int)threadIdx.x)) / (int64_t)8) * (int64_t)512)) + (((((int64_t)((int)blockIdx.x)) / (int64_t)4) * ((int64_t)T)) * (int64_t)64)) + ((((int64_t)((int)blockIdx.x)) % (int64_t)4) * (int64_t)16)) + ((((int64_t)((int)threadIdx.x)) % (int64_t)8) * (int64_t)2)) + (int64_t)16384)]));
      #pragma unroll
      for (int v_24 = 0; v_24 < 8; ++v_24) {
        *(half2*)(next1_ptr + (v_24 * 2)) = *(half2*)(v_23 + (v_24 * 64));
      }
      half* v_25 = (half*)(&(q_ptr[((((((((int64_t)v_14) * (int64_t)16384) + ((((int64_t)((int)threadIdx.x)) / (int64_t)8) * (int64_t)512)) + (((((int64_t)((int)blockIdx.x)) / (int64_t)4) * ((int64_t)T)) * (int64_t)64)) + ((((int64_t)((int)blockIdx.x)) % (int64_t)4) * (int64_t)16)) + ((((int64_t)((int)threadIdx.x)) % (int64_t)8) * (int64_t)2)) + (int64_t)16384)]));
      #pragma unroll
      for (int v_26 = 0; v_26 < 8; ++v_26) {
        *(half2*)(next2_ptr + (v_26 * 2)) = *(half2*)(v_25 + (v_26 * 64));
      }
    }
    if (((T - ((((int)threadIdx.x) / 8) * 8)) - (v_14 * 256)) < 264) {
      #pragma unroll
      for (int v_27 = 0; v_27 < 8; ++v_27) {
        int v_28 = min(((((v_14 * 256) + ((((int)threadIdx.x) / 8) * 8)) + v_27) + 256), (T - 1));
        *(half2*)(next0_ptr + (v_27 * 2)) = *(half2*)(k_ptr + ((((((((int64_t)((int)blockIdx.x)) / (int64_t)4) * ((int64_t)T)) * (int64_t)64) + (((int64_t)min(((((v_14 * 256) + ((((int)threadIdx.x) / 8) * 8)) + v_27) + 256), (T - 1))) * (int64_t)64)) + ((((int64_t)((int)blockIdx.x)) % (int64_t)4) * (int64_t)16)) + ((((int64_t)((int)threadIdx.x)) % (int64_t)8) * (int64_t)2)));
      }
      #pragma unroll
      for (int v_29 = 0; v_29 < 8; ++v_29) {
        int v_30 = min(((((v_14 * 256) + ((((int)threadIdx.x) / 8) * 8)) + v_29) + 256), (T - 1));
        *(half2*)(next1_ptr + (v_29 * 2)) = *(half2*)(v_ptr + ((((((((int64_t)((int)blockIdx.x)) / (int64_t)4) * ((int64_t)T)) * (int64_t)64) + (((int64_t)min(((((v_14 * 256) + ((((int)threadIdx.x) / 8) * 8)) + v_29) + 256), (T - 1))) * (int64_t)64)) + ((((int64_t)((int)blockIdx.x)) % (int64_t)4) * (int64_t)16)) + ((((int64_t)((int)threadIdx.x)) % (int64_t)8) * (int64_t)2)));
      }
      #pragma unroll
      for (int v_31 = 0; v_31 < 8; ++v_31) {
        int v_32 = min(((((v_14 * 256) + ((((int)threadIdx.x) / 8) * 8)) + v_31) + 256), (T - 1));
        *(half2*)(next2_ptr + (v_31 * 2)) = *(half2*)(q_ptr + ((((((((int64_t)((int)blockIdx.x)) / (int64_t)4) * ((int64_t)T)) * (int64_t)64) + (((int64_t)min(((((v_14 * 256) + ((((int)threadIdx.x) / 8) * 8)) + v_31) + 256), (T - 1))) * (int64_t)64)) + ((((int64_t)((int)blockIdx.x)) % (int64_t)4) * (int64_t)16)) + ((((int64_t)((int)threadIdx.x)) % (int64_t)8) * (int64_t)2)));
      }
    }
    #pragma unroll
    for (int v_33 = 0; v_33 < 2; ++v_33) {
      run0_ptr[v_33] = CUDART_INF_F;
    }
    #pragma unroll
    for (int v_34 = 0; v_34 < 8; ++v_34) {
      int step = (((v_14 * 256) + ((((int)threadIdx.x) / 8) * 8)) + v_34);
      int time = (((v_14 * 256) + ((((int)threadIdx.x) / 8) * 8)) + v_34);
      #pragma unroll
      for (int v_35 = 0; v_35 < 2; ++v_35) {
        int channel = ((((((int)blockIdx.x) % 4) * 16) + ((((int)threadIdx.x) % 8) * 2)) + v_35);
        alignas(64) float m_before_ptr[1];
        m_before_ptr[0] = run0_ptr[v_35];
        alignas(64) float k_acc_ptr[1];
        k_acc_ptr[0] = ((float)read0_ptr[((v_34 * 2) + v_35)]);
        alignas(64) float k2_ptr[1];
        k2_ptr[0] = (k_acc_ptr[0] * k_acc_ptr[0]);
        alignas(64) float m_ptr[1];
        m_ptr[0] = min(m_before_ptr[0], k2_ptr[0]);
        run0_ptr[v_35] = m_ptr[0];
      }
    }
    *(float2*)(((float*)shared_ptr) + (((int)threadIdx.x) * 2)) = *(float2*)(run0_ptr + 0);
    __syncthreads();
    if (((int)threadIdx.x) < 16) {
      int v_36 = ((int)threadIdx.x);
      alignas(64) float local_ptr[8];
      alignas(64) float state_ptr[1];
      state_ptr[0] = carry0_ptr[0];
      #pragma unroll
      for (int v_37 = 0; v_37 < 4; ++v_37) {
        #pragma unroll
        for (int v_38 = 0; v_38 < 8; ++v_38) {
          local_ptr[v_38] = ((float*)shared_ptr)[(((v_37 * 128) + (v_38 * 16)) + ((int)threadIdx.x))];
        }
        #pragma unroll
        for (int v_39 = 0; v_39 < 8; ++v_39) {
          ((float*)shared_ptr)[(((v_37 * 128) + (v_39 * 16)) + ((int)threadIdx.x))] = state_ptr[0];
          state_ptr[0] = min(state_ptr[0], local_ptr[v_39]);
        }
      }
      carry0_ptr[0] = state_ptr[0];
    }
    __syncthreads();
    *(float2*)(begin0_ptr + 0) = *(float2*)(((float*)shared_ptr) + (((int)threadIdx.x) * 2));
    alignas(64) float pass0_ptr[2];
    #pragma unroll
    for (int v_40 = 0; v_40 < 2; ++v_40) {
      run0_ptr[v_40] = begin0_ptr[v_40];
      run1_ptr[v_40] = 0x0p+0f/*0.000000e+00*/;
      run2_ptr[v_40] = 0x0p+0f/*0.000000e+00*/;
      run3_ptr[v_40] = 0x0p+0f/*0.000000e+00*/;
      run4_ptr[v_40] = 0x0p+0f/*0.000000e+00*/;
      run5_ptr[v_40] = 0x0p+0f/*0.000000e+00*/;
      run6_ptr[v_40] = 0x0p+0f/*0.000000e+00*/;
      pass0_ptr[v_40] = 0x1p+0f/*1.000000e+00*/;
    }
    #pragma unroll
    for (int v_41 = 0; v_41 < 8; ++v_41) {
      int step_1 = (((v_14 * 256) + ((((int)threadIdx.x) / 8) * 8)) + v_41);
      int time_1 = (((v_14 * 256) + ((((int)threadIdx.x) / 8) * 8)) + v_41);
      #pragma unroll
      for (int v_42 = 0; v_42 < 2; ++v_42) {
        int channel_1 = ((((((int)blockIdx.x) % 4) * 16) + ((((int)threadIdx.x) % 8) * 2)) + v_42);
        alignas(64) float m_before_ptr_1[1];
        m_before_ptr_1[0] = run0_ptr[v_42];
        alignas(64) float A_2_before_ptr[1];
        A_2_before_ptr[0] = run1_ptr[v_42];
        alignas(64) float A_1_before_ptr[1];
        A_1_before_ptr[0] = run2_ptr[v_42];
        alignas(64) float A_0_before_ptr[1];
        A_0_before_ptr[0] = run3_ptr[v_42];
        alignas(64) float B_2_before_ptr[1];
        B_2_before_ptr[0] = run4_ptr[v_42];
        alignas(64) float B_1_before_ptr[1];
        B_1_before_ptr[0] = run5_ptr[v_42];
        alignas(64) float B_0_before_ptr[1];
        B_0_before_ptr[0] = run6_ptr[v_42];
        alignas(64) float k_acc_ptr_1[1];
        k_acc_ptr_1[0] = ((float)read0_ptr[((v_41 * 2) + v_42)]);
        alignas(64) float k2_ptr_1[1];
        k2_ptr_1[0] = (k_acc_ptr_1[0] * k_acc_ptr_1[0]);
        alignas(64) float m_ptr_1[1];
        m_ptr_1[0] = min(m_before_ptr_1[0], k2_ptr_1[0]);
        alignas(64) float g_ptr[1];
        g_ptr[0] = tilegen_ex2(((m_ptr_1[0] - ((0 < (((v_14 * 256) + ((((int)threadIdx.x) / 8) * 8)) + v_41)) ? m_before_ptr_1[0] : m_ptr_1[0])) * 0x1.71547652b82fep+0f/*1.442695e+00*/));
        alignas(64) float w_ptr[1];
        w_ptr[0] = tilegen_ex2(((m_ptr_1[0] - k2_ptr_1[0]) * 0x1.71547652b82fep+0f/*1.442695e+00*/));
        alignas(64) float v_acc_ptr[1];
        v_acc_ptr[0] = ((float)read1_ptr[((v_41 * 2) + v_42)]);
        alignas(64) float wv_ptr[1];
        wv_ptr[0] = (w_ptr[0] * v_acc_ptr[0]);
        alignas(64) float Ax_1_ptr[1];
        Ax_1_ptr[0] = (wv_ptr[0] * k_acc_ptr_1[0]);
        alignas(64) float Ax_2_ptr[1];
        Ax_2_ptr[0] = (Ax_1_ptr[0] * k_acc_ptr_1[0]);
        alignas(64) float A_2_ptr[1];
        A_2_ptr[0] = ((A_2_before_ptr[0] * g_ptr[0]) + Ax_2_ptr[0]);
        alignas(64) float A_1_ptr[1];
        A_1_ptr[0] = ((A_1_before_ptr[0] * g_ptr[0]) + Ax_1_ptr[0]);
        alignas(64) float A_0_ptr[1];
        A_0_ptr[0] = ((A_0_before_ptr[0] * g_ptr[0]) + wv_ptr[0]);
        alignas(64) float Bx_1_ptr[1];
        Bx_1_ptr[0] = (w_ptr[0] * k_acc_ptr_1[0]);
        alignas(64) float Bx_2_ptr[1];
        Bx_2_ptr[0] = (Bx_1_ptr[0] * k_acc_ptr_1[0]);
        alignas(64) float B_2_ptr[1];
        B_2_ptr[0] = ((B_2_before_ptr[0] * g_ptr[0]) + Bx_2_ptr[0]);
        alignas(64) float B_1_ptr[1];
        B_1_ptr[0] = ((B_1_before_ptr[0] * g_ptr[0]) + Bx_1_ptr[0]);
        alignas(64) float B_0_ptr[1];
        B_0_ptr[0] = ((B_0_before_ptr[0] * g_ptr[0]) + w_ptr[0]);
        run0_ptr[v_42] = m_ptr_1[0];
        run1_ptr[v_42] = A_2_ptr[0];
        run2_ptr[v_42] = A_1_ptr[0];
        run3_ptr[v_42] = A_0_ptr[0];
        run4_ptr[v_42] = B_2_ptr[0];
        run5_ptr[v_42] = B_1_ptr[0];
        run6_ptr[v_42] = B_0_ptr[0];
        pass0_ptr[v_42] = (pass0_ptr[v_42] * g_ptr[0]);
      }
    }
    *(float2*)(((float*)shared_ptr) + (((int)threadIdx.x) * 2)) = *(float2*)(run1_ptr + 0);
    *(float2*)(((float*)shared_ptr) + ((((int)threadIdx.x) * 2) + 528)) = *(float2*)(run2_ptr + 0);
    *(float2*)(((float*)shared_ptr) + ((((int)threadIdx.x) * 2) + 1056)) = *(float2*)(run3_ptr + 0);
    *(float2*)(((float*)shared_ptr) + ((((int)threadIdx.x) * 2) + 1584)) = *(float2*)(run4_ptr + 0);
    *(float2*)(((float*)shared_ptr) + ((((int)threadIdx.x) * 2) + 2112)) = *(float2*)(run5_ptr + 0);
    *(float2*)(((float*)shared_ptr) + ((((int)threadIdx.x) * 2) + 2640)) = *(float2*)(run6_ptr + 0);
    *(float2*)(((float*)shared_ptr) + ((((int)threadIdx.x) * 2) + 3168)) = *(float2*)(pass0_ptr + 0);
    __syncthreads();
    if (((int)threadIdx.x) < 96) {
      int v_43 = ((int)threadIdx.x);
      alignas(64) float local_ptr_1[8];
      alignas(64) float passed_ptr[8];
      alignas(64) float state_ptr_1[1];
      state_ptr_1[0] = carry0_ptr_1[0];
      #pragma unroll
      for (int v_44 = 0; v_44 < 4; ++v_44) {
        #pragma unroll
        for (int v_45 = 0; v_45 < 8; ++v_45) {
          local_ptr_1[v_45] = ((float*)shared_ptr)[(((((((int)threadIdx.x) / 16) * 528) + (v_44 * 128)) + (v_45 * 16)) + (((int)threadIdx.x) % 16))];
          passed_ptr[v_45] = ((float*)shared_ptr)[((((v_44 * 128) + (v_45 * 16)) + (((int)threadIdx.x) % 16)) + 3168)];
        }
        #pragma unroll
        for (int v_46 = 0; v_46 < 8; ++v_46) {
          ((float*)shared_ptr)[(((((((int)threadIdx.x) / 16) * 528) + (v_44 * 128)) + (v_46 * 16)) + (((int)threadIdx.x) % 16))] = state_ptr_1[0];
          state_ptr_1[0] = ((passed_ptr[v_46] * state_ptr_1[0]) + local_ptr_1[v_46]);
        }
      }
      carry0_ptr_1[0] = state_ptr_1[0];
    }
    __syncthreads();
    *(float2*)(begin1_ptr + 0) = *(float2*)(((float*)shared_ptr) + (((int)threadIdx.x) * 2));
    *(float2*)(begin2_ptr + 0) = *(float2*)(((float*)shared_ptr) + ((((int)threadIdx.x) * 2) + 528));
    *(float2*)(begin3_ptr + 0) = *(float2*)(((float*)shared_ptr) + ((((int)threadIdx.x) * 2) + 1056));
    *(float2*)(begin4_ptr + 0) = *(float2*)(((float*)shared_ptr) + ((((int)threadIdx.x) * 2) + 1584));
    *(float2*)(begin5_ptr + 0) = *(float2*)(((float*)shared_ptr) + ((((int)threadIdx.x) * 2) + 2112));
    *(float2*)(begin6_ptr + 0) = *(float2*)(((float*)shared_ptr) + ((((int)threadIdx.x) * 2) + 2640));
    #pragma unroll
    for (int v_47 = 0; v_47 < 2; ++v_47) {
      run0_ptr[v_47] = begin0_ptr[v_47];
      run1_ptr[v_47] = begin1_ptr[v_47];
      run2_ptr[v_47] = begin2_ptr[v_47];
      run3_ptr[v_47] = begin3_ptr[v_47];
      run4_ptr[v_47] = begin4_ptr[v_47];
      run5_ptr[v_47] = begin5_ptr[v_47];
      run6_ptr[v_47] = begin6_ptr[v_47];
    }
    half* v_48 = (half*)(&(y_ptr[(((((((int64_t)v_14) * (int64_t)16384) + ((((int64_t)((int)threadIdx.x)) / (int64_t)8) * (int64_t)512)) + (((((int64_t)((int)blockIdx.x)) / (int64_t)4) * ((int64_t)T)) * (int64_t)64)) + ((((int64_t)((int)blockIdx.x)) % (int64_t)4) * (int64_t)16)) + ((((int64_t)((int)threadIdx.x)) % (int64_t)8) * (int64_t)2))]));
    #pragma unroll
    for (int v_49 = 0; v_49 < 8; ++v_49) {
      int step_2 = (((v_14 * 256) + ((((int)threadIdx.x) / 8) * 8)) + v_49);
      int time_2 = (((v_14 * 256) + ((((int)threadIdx.x) / 8) * 8)) + v_49);
      bool v_50 = ((((v_14 * 256) + ((((int)threadIdx.x) / 8) * 8)) + v_49) < T);
      #pragma unroll
      for (int v_51 = 0; v_51 < 2; ++v_51) {
        int channel_2 = ((((((int)blockIdx.x) % 4) * 16) + ((((int)threadIdx.x) % 8) * 2)) + v_51);
        alignas(64) float m_before_ptr_2[1];
        m_before_ptr_2[0] = run0_ptr[v_51];
        alignas(64) float A_2_before_ptr_1[1];
        A_2_before_ptr_1[0] = run1_ptr[v_51];
        alignas(64) float A_1_before_ptr_1[1];
        A_1_before_ptr_1[0] = run2_ptr[v_51];
        alignas(64) float A_0_before_ptr_1[1];
        A_0_before_ptr_1[0] = run3_ptr[v_51];
        alignas(64) float B_2_before_ptr_1[1];
        B_2_before_ptr_1[0] = run4_ptr[v_51];
        alignas(64) float B_1_before_ptr_1[1];
        B_1_before_ptr_1[0] = run5_ptr[v_51];
        alignas(64) float B_0_before_ptr_1[1];
        B_0_before_ptr_1[0] = run6_ptr[v_51];
        alignas(64) float k_acc_ptr_2[1];
        k_acc_ptr_2[0] = ((float)read0_ptr[((v_49 * 2) + v_51)]);
        alignas(64) float k2_ptr_2[1];
        k2_ptr_2[0] = (k_acc_ptr_2[0] * k_acc_ptr_2[0]);
        alignas(64) float m_ptr_2[1];
        m_ptr_2[0] = min(m_before_ptr_2[0], k2_ptr_2[0]);
        alignas(64) float g_ptr_1[1];
        g_ptr_1[0] = tilegen_ex2(((m_ptr_2[0] - ((0 < (((v_14 * 256) + ((((int)threadIdx.x) / 8) * 8)) + v_49)) ? m_before_ptr_2[0] : m_ptr_2[0])) * 0x1.71547652b82fep+0f/*1.442695e+00*/));
        alignas(64) float w_ptr_1[1];
        w_ptr_1[0] = tilegen_ex2(((m_ptr_2[0] - k2_ptr_2[0]) * 0x1.71547652b82fep+0f/*1.442695e+00*/));
        alignas(64) float v_acc_ptr_1[1];
        v_acc_ptr_1[0] = ((float)read1_ptr[((v_49 * 2) + v_51)]);
        alignas(64) float wv_ptr_1[1];
        wv_ptr_1[0] = (w_ptr_1[0] * v_acc_ptr_1[0]);
        alignas(64) float Ax_1_ptr_1[1];
        Ax_1_ptr_1[0] = (wv_ptr_1[0] * k_acc_ptr_2[0]);
        alignas(64) float Ax_2_ptr_1[1];
        Ax_2_ptr_1[0] = (Ax_1_ptr_1[0] * k_acc_ptr_2[0]);
        alignas(64) float A_2_ptr_1[1];
        A_2_ptr_1[0] = ((A_2_before_ptr_1[0] * g_ptr_1[0]) + Ax_2_ptr_1[0]);
        alignas(64) float A_1_ptr_1[1];
        A_1_ptr_1[0] = ((A_1_before_ptr_1[0] * g_ptr_1[0]) + Ax_1_ptr_1[0]);
        alignas(64) float A_0_ptr_1[1];
        A_0_ptr_1[0] = ((A_0_before_ptr_1[0] * g_ptr_1[0]) + wv_ptr_1[0]);
        alignas(64) float Bx_1_ptr_1[1];
        Bx_1_ptr_1[0] = (w_ptr_1[0] * k_acc_ptr_2[0]);
        alignas(64) float Bx_2_ptr_1[1];
        Bx_2_ptr_1[0] = (Bx_1_ptr_1[0] * k_acc_ptr_2[0]);
        alignas(64) float B_2_ptr_1[1];
        B_2_ptr_1[0] = ((B_2_before_ptr_1[0] * g_ptr_1[0]) + Bx_2_ptr_1[0]);
        alignas(64) float B_1_ptr_1[1];
        B_1_ptr_1[0] = ((B_1_before_ptr_1[0] * g_ptr_1[0]) + Bx_1_ptr_1[0]);
        alignas(64) float B_0_ptr_1[1];
        B_0_ptr_1[0] = ((B_0_before_ptr_1[0] * g_ptr_1[0]) + w_ptr_1[0]);
        alignas(64) float q_acc_ptr[1];
        q_acc_ptr[0] = ((float)read2_ptr[((v_49 * 2) + v_51)]);
        alignas(64) float numerator_ptr[1];
        numerator_ptr[0] = (((((A_2_ptr_1[0] * 0x1p+1f/*2.000000e+00*/) * q_acc_ptr[0]) + (A_1_ptr_1[0] * 0x1p+1f/*2.000000e+00*/)) * q_acc_ptr[0]) + A_0_ptr_1[0]);
        alignas(64) float denominator_ptr[1];
        denominator_ptr[0] = (((((B_2_ptr_1[0] * 0x1p+1f/*2.000000e+00*/) * q_acc_ptr[0]) + (B_1_ptr_1[0] * 0x1p+1f/*2.000000e+00*/)) * q_acc_ptr[0]) + B_0_ptr_1[0]);
        alignas(64) float ratio_ptr[1];
        ratio_ptr[0] = (numerator_ptr[0] * tilegen_rcp(denominator_ptr[0]));
        run0_ptr[v_51] = m_ptr_2[0];
        run1_ptr[v_51] = A_2_ptr_1[0];
        run2_ptr[v_51] = A_1_ptr_1[0];
        run3_ptr[v_51] = A_0_ptr_1[0];
        run4_ptr[v_51] = B_2_ptr_1[0];
        run5_ptr[v_51] = B_1_ptr_1[0];
        run6_ptr[v_51] = B_0_ptr_1[0];
        out0_ptr[v_51] = ((half)ratio_ptr[0]);
      }
      if ((((v_14 * 256) + ((((int)threadIdx.x) / 8) * 8)) + v_49) < T) {
        *(half2*)(v_48 + (v_49 * 64)) = *(half2*)(out0_ptr + 0);
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
