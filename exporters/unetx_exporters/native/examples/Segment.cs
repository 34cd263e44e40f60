// Segment a raw 8-bit image from C#; the runtime finds libunetx.so or unetx.dll by its own search rules:
//
//   Segment BUNDLE /path/to/libonnxruntime.so WIDTH HEIGHT IN.raw OUT.raw
using System;
using System.IO;
using System.Runtime.InteropServices;
using System.Text;

static class Unetx
{
    [StructLayout(LayoutKind.Sequential)]
    public struct Image
    {
        public uint StructSize, Height, Width, BitsAllocated, BitsStored, IsSigned, Photometric, Reserved;
        public IntPtr Pixels;
        public ulong PixelsSize, RowStride;
        public double RowSpacingMm, ColumnSpacingMm;
    }

    [StructLayout(LayoutKind.Sequential)]
    public struct Mask
    {
        public uint StructSize, Reserved;
        public IntPtr Labels;
        public ulong LabelsSize, RowStride;
    }

    public const uint AbiVersion = 1, Monochrome2 = 2;
    const CallingConvention C = CallingConvention.Cdecl;

    [DllImport("unetx", CallingConvention = C)] public static extern uint unetx_abi_version();
    [DllImport("unetx", CallingConvention = C)] static extern IntPtr unetx_last_message();
    [DllImport("unetx", CallingConvention = C)]
    public static extern int unetx_open(byte[] bundle, byte[] onnxruntime, uint threads, out IntPtr segmenter);
    [DllImport("unetx", CallingConvention = C)]
    public static extern int unetx_segment(IntPtr segmenter, ref Image image, ref Mask mask, IntPtr timings);
    [DllImport("unetx", CallingConvention = C)] public static extern void unetx_close(IntPtr segmenter);

    public static byte[] Text(string value)
    {
        return Encoding.UTF8.GetBytes(value + "\0");
    }

    public static void Check(int status)
    {
        if (status == 0) return;
        IntPtr message = unetx_last_message();
        int length = 0;
        while (Marshal.ReadByte(message, length) != 0) length++;
        var bytes = new byte[length];
        Marshal.Copy(message, bytes, 0, length);
        throw new InvalidOperationException(Encoding.UTF8.GetString(bytes));
    }
}

static class Program
{
    static byte[] Segment(IntPtr segmenter, byte[] pixels, uint width, uint height)
    {
        var labels = new byte[width * height];
        GCHandle source = GCHandle.Alloc(pixels, GCHandleType.Pinned), target = GCHandle.Alloc(labels, GCHandleType.Pinned);
        try
        {
            var image = new Unetx.Image
            {
                StructSize = (uint)Marshal.SizeOf(typeof(Unetx.Image)), Height = height, Width = width, BitsAllocated = 8,
                Photometric = Unetx.Monochrome2, Pixels = source.AddrOfPinnedObject(),
                PixelsSize = (ulong)pixels.Length, RowStride = width
            };
            var mask = new Unetx.Mask
            {
                StructSize = (uint)Marshal.SizeOf(typeof(Unetx.Mask)), Labels = target.AddrOfPinnedObject(),
                LabelsSize = (ulong)labels.Length, RowStride = width
            };
            Unetx.Check(Unetx.unetx_segment(segmenter, ref image, ref mask, IntPtr.Zero));
        }
        finally
        {
            source.Free();
            target.Free();
        }
        return labels;
    }

    static int Main(string[] arguments)
    {
        try
        {
            if (arguments.Length != 6)
                throw new ArgumentException("usage: Segment BUNDLE ONNXRUNTIME WIDTH HEIGHT IN.raw OUT.raw");
            if (Unetx.unetx_abi_version() != Unetx.AbiVersion)
                throw new InvalidOperationException("the library has another ABI version");
            IntPtr segmenter;
            Unetx.Check(Unetx.unetx_open(Unetx.Text(arguments[0]), Unetx.Text(arguments[1]), 0, out segmenter));
            try
            {
                byte[] labels = Segment(segmenter, File.ReadAllBytes(arguments[4]), uint.Parse(arguments[2]),
                                        uint.Parse(arguments[3]));
                File.WriteAllBytes(arguments[5], labels);
            }
            finally
            {
                Unetx.unetx_close(segmenter);
            }
            return 0;
        }
        catch (Exception error)
        {
            Console.Error.WriteLine("Segment: " + error.Message);
            return 1;
        }
    }
}
