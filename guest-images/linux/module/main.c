// SPDX-License-Identifier: GPL-2.0
/* Hmmvisor's accelerator: the platform device that ACPI describes as HMMV0001. */

#include <linux/acpi.h>
#include <linux/idr.h>
#include <linux/interrupt.h>
#include <linux/module.h>
#include <linux/platform_device.h>
#include <linux/slab.h>
#include <linux/version.h>

#include "driver.h"

static DEFINE_IDA(ids);

static void accel_free(struct kref *ref)
{
	struct accel *accel = container_of(ref, struct accel, ref);

	if (accel->queue)
		free_pages_exact(accel->queue, queue_bytes());
	free_page((unsigned long)accel->translations);
	xa_destroy(&accel->spaces);
	if (accel->id >= 0)
		ida_free(&ids, accel->id);
	kfree(accel);
}

void accel_put(struct accel *accel)
{
	kref_put(&accel->ref, accel_free);
}

static irqreturn_t accel_interrupt(int irq, void *data)
{
	struct accel *accel = data;

	queue_reap(accel);
	mirror_check_fault(accel);
	return IRQ_HANDLED;
}

static bool is_managed(struct accel *accel, void *memory, size_t bytes)
{
	u64 offset = virt_to_phys(memory) - accel->managed_base;

	return offset < accel->managed_size && bytes <= accel->managed_size - offset;
}

static int accel_identify(struct accel *accel)
{
	if (reg_read(accel, REG_ID) != ID_VALUE || reg_read(accel, REG_VERSION) != DEVICE_VERSION)
		return dev_err_probe(accel->dev, -ENODEV, "no accelerator of version %d\n", DEVICE_VERSION);
	if (!reg_read(accel, REG_SPACES))
		return dev_err_probe(accel->dev, -ENODEV, "the accelerator has no address spaces\n");
	accel->memory = reg_read(accel, REG_MEMORY_SIZE);
	accel->managed_base = reg_read(accel, REG_MANAGED_BASE);
	accel->managed_size = reg_read(accel, REG_MANAGED_SIZE);
	return 0;
}

static int accel_alloc_queue(struct accel *accel)
{
	accel->queue = alloc_pages_exact(queue_bytes(), GFP_KERNEL | __GFP_ZERO);
	accel->translations = (u64 *)get_zeroed_page(GFP_KERNEL);
	if (!accel->queue || !accel->translations)
		return -ENOMEM;
	if (!is_managed(accel, accel->queue, queue_bytes()) || !is_managed(accel, accel->translations, PAGE_SIZE))
		return dev_err_probe(accel->dev, -ENOMEM, "the kernel's memory is not in reach of the accelerator\n");
	accel->commands = (void *)(accel->queue + 1);
	accel->completions = (void *)(accel->commands + QUEUE_ENTRIES);
	return 0;
}

/* Returns when the device no longer uses memory; commands that are waiting for a translation are aborted. */
static void accel_disable(struct accel *accel)
{
	reg_write(accel, REG_ENABLE, 0);
	while (reg_read(accel, REG_ENABLE))
		cond_resched();
}

static int accel_enable(struct accel *accel)
{
	u64 error;

	/* An earlier user, such as a kernel that was replaced by this one, may have left it enabled. */
	accel_disable(accel);
	reg_read(accel, REG_ERROR);
	reg_write(accel, REG_QUEUE_BASE, virt_to_phys(accel->queue));
	reg_write(accel, REG_QUEUE_ENTRIES, QUEUE_ENTRIES);
	reg_write(accel, REG_TRANSLATIONS, virt_to_phys(accel->translations));
	/* To where this interrupt goes; the I/O APIC says which processor that is. */
	reg_write(accel, REG_IRQ, 1);
	reg_write(accel, REG_ENABLE, 1);
	error = reg_read(accel, REG_ERROR);
	if (error || !reg_read(accel, REG_ENABLE))
		return dev_err_probe(accel->dev, -EIO, "the accelerator refuses to start, error %llu\n", error);
	return 0;
}

/* After this no code of the driver touches registers any more, and every command has completed. */
static void accel_stop(struct accel *accel)
{
	mirror_stop(accel);
	accel_disable(accel);
	queue_abort(accel);
}

static int accel_probe(struct platform_device *pdev)
{
	struct accel *accel;
	int ret;

	accel = kzalloc(sizeof(*accel), GFP_KERNEL);
	if (!accel)
		return -ENOMEM;
	kref_init(&accel->ref);
	spin_lock_init(&accel->queue_lock);
	init_waitqueue_head(&accel->queue_space);
	mutex_init(&accel->mirror_lock);
	xa_init_flags(&accel->spaces, XA_FLAGS_ALLOC);
	accel->dev = &pdev->dev;
	accel->id = ida_alloc(&ids, GFP_KERNEL);
	if (accel->id < 0) {
		ret = accel->id;
		goto put;
	}
	snprintf(accel->name, sizeof(accel->name), "hmmvisor%d", accel->id);

	accel->regs = devm_platform_ioremap_resource(pdev, 0);
	if (IS_ERR(accel->regs)) {
		ret = dev_err_probe(&pdev->dev, PTR_ERR(accel->regs), "no registers\n");
		goto put;
	}
	ret = accel_identify(accel) ?: accel_alloc_queue(accel);
	if (ret)
		goto put;
	accel->faults = alloc_workqueue("%s", WQ_UNBOUND, 0, accel->name);
	if (!accel->faults) {
		ret = -ENOMEM;
		goto put;
	}
	accel->irq = platform_get_irq(pdev, 0);
	if (accel->irq < 0) {
		ret = accel->irq;
		goto destroy;
	}
	ret = request_threaded_irq(accel->irq, NULL, accel_interrupt, IRQF_ONESHOT, accel->name, accel);
	if (ret) {
		dev_err_probe(&pdev->dev, ret, "no interrupt\n");
		goto destroy;
	}
	ret = accel_enable(accel);
	if (ret)
		goto irq;
	accel->misc.minor = MISC_DYNAMIC_MINOR;
	accel->misc.name = accel->name;
	accel->misc.fops = &context_fops;
	accel->misc.parent = &pdev->dev;
	/* Programs get nothing here but access to their own memory. */
	accel->misc.mode = 0666;
	ret = misc_register(&accel->misc);
	if (ret)
		goto stop;
	platform_set_drvdata(pdev, accel);
	dev_info(&pdev->dev, "%s: %llu MiB of device memory\n", accel->name, accel->memory >> 20);
	return 0;

stop:
	accel_stop(accel);
irq:
	free_irq(accel->irq, accel);
destroy:
	destroy_workqueue(accel->faults);
put:
	accel_put(accel);
	return ret;
}

static void accel_detach(struct platform_device *pdev)
{
	struct accel *accel = platform_get_drvdata(pdev);

	misc_deregister(&accel->misc);
	accel_stop(accel);
	free_irq(accel->irq, accel);
	/* Ends faults that are being served. Files that are still open keep the rest. */
	destroy_workqueue(accel->faults);
	accel_put(accel);
}

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 11, 0)
static void accel_remove(struct platform_device *pdev)
{
	accel_detach(pdev);
}
#else
static int accel_remove(struct platform_device *pdev)
{
	accel_detach(pdev);
	return 0;
}
#endif

/* The next kernel must not find a device that writes to its memory. */
static void accel_shutdown(struct platform_device *pdev)
{
	accel_stop(platform_get_drvdata(pdev));
}

static const struct acpi_device_id accel_acpi_ids[] = {
	{ "HMMV0001", 0 },
	{ }
};
MODULE_DEVICE_TABLE(acpi, accel_acpi_ids);

static struct platform_driver accel_driver = {
	.probe = accel_probe,
	.remove = accel_remove,
	.shutdown = accel_shutdown,
	.driver = {
		.name = "hmmvisor",
		.acpi_match_table = accel_acpi_ids,
	},
};
module_platform_driver(accel_driver);

MODULE_DESCRIPTION("Accelerator of a Hmmvisor virtual machine");
MODULE_AUTHOR("Hmmvisor developers");
MODULE_LICENSE("GPL");
