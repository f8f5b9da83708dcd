; cudaGraphSetConditional for Triton kernels: one thread of the program sets the condition of a graph's WHILE node.
target triple = "nvptx64-nvidia-cuda"
declare void @cudaGraphSetConditional(i64, i32)
declare i32 @llvm.nvvm.read.ptx.sreg.tid.x()
define i32 @radar_set_condition(i64 %handle, i32 %value) #0 {
entry:
  %thread = call i32 @llvm.nvvm.read.ptx.sreg.tid.x()
  %first = icmp eq i32 %thread, 0
  br i1 %first, label %set, label %end
set:
  call void @cudaGraphSetConditional(i64 %handle, i32 %value)
  br label %end
end:
  ret i32 %value
}
attributes #0 = { alwaysinline nounwind }
